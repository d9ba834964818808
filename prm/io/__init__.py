"""Files, folders, locks and progress: what touches the disk or the terminal. Torch is loaded by `tensors` alone."""
