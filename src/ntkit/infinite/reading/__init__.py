"""From a graph to the lines of a tensor program: the table of rules and what flows through it."""
