"use strict";
// A click on a column's name sorts a table by it: up, down, and as it was.
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function figure(text) {
  const found = text.replace(/(\d),(?=\d{3})/g, "$1").match(/[+-]?\d*\.?\d+/);
  return found ? Number(found[0]) : null;
}

function compare(column, isText, sign) {
  const cell = (row) => row.cells[column].textContent.trim();
  return (a, b) => {
    if (isText) return sign * cell(a).localeCompare(cell(b), undefined, { numeric: true });
    const [x, y] = [figure(cell(a)), figure(cell(b))];
    if (x === null || y === null) return (x === null) - (y === null); // dashes come last
    return sign * (x - y);
  };
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const isText = head.classList.contains("text");
      const sorted = order === "none" ? rows : [...rows].sort(compare(column, isText, sign));
      body.append(...sorted);
    });
  });
}

// What is folded is printed too.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
