"""Token stores: writing, looking at and exporting them."""
