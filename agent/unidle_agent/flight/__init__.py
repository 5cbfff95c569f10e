"""The flight recorder: the last two minutes of every GPU at full rate, kept for when something happens."""
