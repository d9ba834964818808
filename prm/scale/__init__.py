"""Score files of any size: each text is read once in the whole job, on one machine or on Ray."""
