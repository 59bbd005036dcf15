"""The HTTP doors: each renders its own errors and knows no rule of what is behind it."""
