"""Product of few rows with an int8 weight: what decoding one token at a time waits for."""
