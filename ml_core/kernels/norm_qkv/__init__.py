"""Norm and the three projections of attention in one operator."""
