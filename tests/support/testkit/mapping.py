"""Declared mappings for tests: a bank's table under names of its own, and further inputs of it."""

RENAMED = """
name = "our_bank"
id = "tx"
card = "payer"
terminal = "shop"
[time]
column = "booked"
[amount]
column = "paid"
unit = "cents"
[fraud]
column = "is_fraud"
"""
SCHEME = """
[[inputs]]
column = "scheme"
kind = "category"
"""
LATITUDE = """
[[inputs]]
column = "lat"
kind = "number"
"""
