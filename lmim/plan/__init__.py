"""Which trials: sweep file, designs, claims, cost. Pure: imports neither torch nor Ray."""
