"""Seeds of independent random streams, derived from a few integers."""

MASK = 2**64 - 1


def mix_seed(*numbers: int) -> int:
    """Mix integers into a 63-bit seed: splitmix64's finaliser after each (Steele et al. 2014).

    Pure Python integers: about a microsecond, and the same on every machine.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state >> 1
