"""The kinds of feedback: pairs, ratings, thumbs, picks, rankings. Each reads one form of rows."""
