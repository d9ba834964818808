// The page `/`: asks, learns at once, and shows what is believed. No library, no other site.
"use strict";

const at = (id) => document.getElementById(id);
const buttons = [at("first"), at("second"), at("tie")];
const WAITS = [1, 2, 3, 5, 8]; // seconds between tries

let user = "";
let question = null; // what is asked now
let answered = 0;
let ties = 0; // of these
let number = 0; // of the new question that is shown
let busy = false;

// ---- the person: a random id, kept in this browser

function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remembered() {
  try {
    return localStorage.getItem("person");
  } catch {
    return null; // storage is switched off: a person for as long as the page is open
  }
}

function remember(id) {
  try {
    localStorage.setItem("person", id);
  } catch {
    // as above
  }
}

function person(isNew) {
  user = (!isNew && remembered()) || `page-${randomId()}`;
  remember(user);
}

// ---- the API key, where the service needs one: kept for as long as this tab is open

let key = "";
try {
  key = sessionStorage.getItem("key") || "";
} catch {
  // storage is switched off: a key for as long as the page is open
}
let entering = null; // what waits for a key

function lock(on) {
  at("locked").hidden = !on;
  for (const part of document.querySelectorAll("main, footer")) part.hidden = on;
}

function newKey() {
  at("key-says").textContent = key
    ? "The service does not know this key."
    : "The service needs a key. It is kept until you close this tab.";
  lock(true);
  at("api-key").focus();
  return new Promise((resolve) => {
    at("locked").onsubmit = (event) => {
      event.preventDefault();
      key = at("api-key").value;
      at("api-key").value = "";
      try {
        sessionStorage.setItem("key", key);
      } catch {
        // as above
      }
      lock(false);
      entering = null;
      resolve();
    };
  });
}

// ---- the service

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Ask the service; while it is busy or gone, say so and try again. A refusal throws.
async function ask(method, path, body) {
  for (let tries = 0; ; tries += 1) {
    let wait = WAITS[Math.min(tries, WAITS.length - 1)];
    const used = key;
    try {
      const reply = await fetch(path, {
        method,
        headers: {
          ...(body ? { "Content-Type": "application/json" } : {}),
          ...(used ? { Authorization: `Bearer ${used}` } : {}),
        },
        body: body ? JSON.stringify(body) : undefined,
      });
      const content = await reply.json().catch(() => ({}));
      if (reply.ok) {
        trouble("");
        return content;
      }
      if (reply.status === 401) {
        if (used === key) await (entering ??= newKey()); // another request may have got a new one meanwhile
        continue;
      }
      const message = content.error?.message || `error ${reply.status}`;
      if (![429, 502, 503, 504].includes(reply.status)) throw new Refused(reply.status, message);
      wait = Math.max(wait, Number(reply.headers.get("Retry-After")) || 0);
      trouble(`One moment: ${message}.`, true);
    } catch (error) {
      if (error instanceof Refused) throw error;
      trouble("The service cannot be reached. Trying again; nothing that you clicked is lost.");
    }
    await pause(wait);
  }
}

const about = (what = "") => `v1/users/${encodeURIComponent(user)}${what}`;

// Say what is wrong, or what the page waits for; "" takes it away.
function trouble(message, isWait = false) {
  const place = at("trouble");
  if (place.textContent === message) return;
  place.replaceChildren();
  if (message) {
    const line = document.createElement("p");
    line.className = isWait ? "warning waits" : "warning";
    line.textContent = message;
    place.append(line);
  }
}

// ---- asking

function asText(prompt) {
  if (typeof prompt === "string") return prompt;
  return prompt.length === 1 ? prompt[0].content : prompt.map((turn) => `${turn.role}: ${turn.content}`).join("\n");
}

function enable(on) {
  busy = !on;
  document.querySelector(".answers").setAttribute("aria-busy", String(busy));
  for (const button of buttons) button.setAttribute("aria-disabled", String(busy || !question));
}

async function nextQuestion() {
  try {
    question = await ask("GET", about("/question"));
  } catch (error) {
    if (error.status !== 404) throw error;
    question = null;
    at("asking").classList.add("finished");
    at("prompt").textContent = answered ? "That was the last question. Thank you." : `No question: ${error.message}`;
    for (const button of buttons) button.hidden = true;
    at("why").textContent = "";
    return;
  }
  at("asking").classList.remove("finished");
  at("prompt").textContent = asText(question.prompt);
  buttons.forEach((button, i) => {
    button.disabled = false;
    button.hidden = false;
    button.classList.remove("taken");
    if (i < 2) button.querySelector(".text").textContent = question.responses[i];
  });
  at("why").textContent =
    question.chosen_by === "information"
      ? `Of ${question.left.toLocaleString("en")} questions this one tells most about you.`
      : "A random question: this model does not know how sure it is of you.";
}

async function answer(says) {
  if (busy || !question) return;
  enable(false);
  const tie = says === "tie";
  const chosen = tie ? 0 : says;
  buttons[tie ? 2 : chosen].classList.add("taken");
  const asked = question;
  await guarded(async () => {
    await ask("POST", "v1/feedback", {
      type: "pair",
      user,
      prompt: asked.prompt,
      chosen: asked.responses[chosen],
      rejected: asked.responses[1 - chosen],
      tie,
      idempotency_key: randomId(), // tries of this click count once
    });
    answered += 1;
    ties += tie;
    await show();
    at("status").textContent = `Answer ${answered} noted. ${at("says").textContent} Next: ${at("prompt").textContent}`;
  });
  enable(true);
}

// ---- what is believed

function bar(leaning, most) {
  const place = (value) => `${50 + 50 * Math.max(-1, Math.min(1, value / most))}%`;
  const line = document.createElement("li");
  const clear = Math.abs(leaning.weight) > (leaning.std === null ? 0.05 : 2 * leaning.std);
  line.innerHTML = // only this: all texts are set below
    '<span class="less"></span><span class="more"></span><span class="track" aria-hidden="true"><span class="range"></span><span class="dot"></span></span><span class="figure"></span>';
  const [less, more, track, figure] = line.children;
  less.textContent = leaning.less;
  more.textContent = leaning.more;
  less.classList.toggle("toward", clear && leaning.weight < 0);
  more.classList.toggle("toward", clear && leaning.weight > 0);
  figure.textContent = leaning.says;
  const spread = leaning.std === null ? 0 : 1.96 * leaning.std;
  const [low, high] = [leaning.weight - spread, leaning.weight + spread].map((v) => Math.max(-most, Math.min(most, v)));
  track.style.setProperty("--at", place(leaning.weight));
  track.style.setProperty("--from", place(low));
  track.style.setProperty("--width", `${(50 * (high - low)) / most}%`);
  return line;
}

function describe(found) {
  const reach = found.leanings.map((l) => Math.abs(l.weight) + 1.96 * (l.std ?? 0));
  const most = Math.max(1, ...reach);
  const bars = at("bars");
  const made = found.leanings.map((leaning) => bar(leaning, most));
  if (bars.children.length === made.length) {
    made.forEach((line, i) => { // the old ones stay, and move
      const old = bars.children[i];
      for (const name of ["less", "more", "figure"]) {
        const [to, from] = [old, line].map((one) => one.querySelector(`.${name}`));
        to.textContent = from.textContent;
        to.className = from.className;
      }
      old.querySelector(".track").style.cssText = line.querySelector(".track").style.cssText;
    });
  } else {
    bars.replaceChildren(...made);
  }
  at("scale").hidden = !found.leanings.some((l) => l.std !== null);
  at("says").textContent = found.says;
  const count = `${found.comparisons} ${found.comparisons === 1 ? "comparison" : "comparisons"}`;
  const it = found.comparisons === 1 ? "It" : "They";
  const aside = ties ? " An “I can't tell” is no comparison." : "";
  const sure = found.sure === null ? "" : ` ${it} removed ${Math.round(100 * found.sure)}% of its uncertainty about you.`;
  at("known").textContent = found.known ? `You are known by ${count}.${sure}${aside}` : "";
}

// ---- a new question

async function preview() {
  let found;
  try {
    found = await ask("GET", about(`/preview?number=${number}`));
  } catch (error) {
    if (error.status !== 404) throw error;
    at("picked").hidden = true;
    return null;
  }
  at("picked").hidden = false;
  at("new-prompt").textContent = asText(found.prompt);
  const same = found.personal === found.generic;
  at("mine").querySelector("h3").textContent = same ? "For you and for everybody" : "For you";
  at("mine").querySelector(".text").textContent = found.responses[found.personal];
  at("everybodys").hidden = same;
  document.querySelector(".picks").classList.toggle("one", same);
  at("everybodys").querySelector(".text").textContent = found.responses[found.generic];
  const n = found.differs.length;
  const one = found.count === 1;
  at("differs").textContent =
    (n
      ? `Its picks for you and for everybody differ in ${one ? "the one new question" : `${n} of ${found.count} new questions`}.`
      : `So far its picks for you are those for everybody, in ${one ? "the one new question" : `all ${found.count} new questions`}.`) +
    (same ? "" : ` Here it gives you a ${Math.round(100 * found.p_personal)}% chance of preferring yours.`);
  at("another").dataset.next = String(nextNumber(found));
  return found;
}

// The next one where the picks differ, if there is one; else the next.
function nextNumber(found) {
  const others = found.differs.filter((i) => i !== number);
  return others.find((i) => i > number) ?? others[0] ?? (number + 1) % found.count;
}

// ---- all of it

async function show() {
  describe(await ask("GET", about())); // alone: while the service still reads its questions, one request waits
  await Promise.all([nextQuestion(), preview()]);
}

// Run it; what was refused is said.
async function guarded(work) {
  try {
    await work();
  } catch (error) {
    trouble(error instanceof Refused ? `The service refused: ${error.message}.` : `The page failed: ${error.message}.`);
  }
}

async function forget() {
  enable(false);
  await guarded(async () => {
    await ask("DELETE", about());
    person(true);
    answered = ties = 0;
    number = 0;
    await show();
    at("status").textContent = "You are forgotten.";
  });
  enable(true);
}

for (const button of buttons) {
  button.addEventListener("click", () => answer(button.dataset.says === "tie" ? "tie" : Number(button.dataset.says)));
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || at("sure").open || event.target === at("api-key")) return;
  const i = ["1", "2", "3"].indexOf(event.key);
  if (i >= 0) answer(i === 2 ? "tie" : i);
});
at("another").addEventListener("click", () => {
  number = Number(at("another").dataset.next || 0);
  guarded(preview);
});
at("forget").addEventListener("click", () => {
  at("sure").returnValue = "no";
  at("sure").showModal();
});
at("sure").addEventListener("close", () => {
  if (at("sure").returnValue === "yes") forget();
});

person(false);
enable(false);
guarded(show).then(() => enable(true));
