"""Harnesses for bad days: kills, power cuts, full disks, damage, other processes, threads."""
