"""The random variables of a tensor program, and what is asked of those that evaluate them."""
