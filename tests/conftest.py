"""What every test shares: property tests that draw the same examples each time, however slow the machine is."""

from hypothesis import settings

settings.register_profile("digitserve", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("digitserve")
