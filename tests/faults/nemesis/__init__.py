"""The nemesis: the whole stack as real processes, faults drawn from a seed, and a judge over what the clients saw."""
