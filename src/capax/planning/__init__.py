"""What a run will cost before it is spent: sizes, the machine, its probe, budgets and plans."""
