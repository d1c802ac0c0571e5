"""Control: the only writer of control state. A change is logged, then written as a snapshot with the
next generation, then taken up by every worker, then answered."""
