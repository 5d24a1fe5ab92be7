"""The contract: stages, combinators, packets, the registry and the errors. Imports nothing else of laconic."""
