"""The recommender: read a history, walk the tree of next codes; beams, exact mass and training stand on these two steps."""
