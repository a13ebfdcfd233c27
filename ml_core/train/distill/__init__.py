"""Training of a benchmark's cells: teachers, students by every system, the ledger of what is finished, tuning."""
