"""Files, folders, locks and progress bars. Only `tensors` imports torch."""
