"""Where guesses come from: the draft model, look-ups, past outputs, the likeliest of them."""
