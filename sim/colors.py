"""The colours that orders name."""

COLORS = ("red", "green", "blue", "yellow")
RGBA = {
    "red": (0.86, 0.10, 0.10, 1.0),
    "green": (0.10, 0.62, 0.16, 1.0),
    "blue": (0.12, 0.25, 0.88, 1.0),
    "yellow": (0.96, 0.80, 0.08, 1.0),
}
