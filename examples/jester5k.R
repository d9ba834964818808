# Make data/jester5k out of Jester5k, which the R package recommenderlab holds (5,000 people; Goldberg et al. 2001).
# Run it: Rscript examples/jester5k.R    Before it: install.packages(c("recommenderlab", "jsonlite"))
library(recommenderlab)
data(Jester5k)
dir.create("data/jester5k", recursive = TRUE, showWarnings = FALSE)
ratings <- setNames(as(Jester5k, "data.frame"), c("user_id", "joke_id", "rating"))
write.csv(ratings, gzfile("data/jester5k/ratings.csv.gz"), row.names = FALSE, quote = FALSE)
jokes <- data.frame(joke_id = colnames(Jester5k), text = unname(JesterJokes))
jsonlite::stream_out(jokes, file("data/jester5k/jokes.jsonl"), verbose = FALSE)
