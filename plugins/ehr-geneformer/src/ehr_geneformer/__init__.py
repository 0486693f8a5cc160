"""The Geneformer recipe for the ehr workbench: rank-value tokens."""
