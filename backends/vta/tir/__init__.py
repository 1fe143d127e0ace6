"""Products as TIR: what is computed, how it is scheduled, and what the schedule does in order."""
