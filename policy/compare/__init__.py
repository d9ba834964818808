"""Policies side by side: arms trained, asked the same questions, and judged by something that none learnt from."""
