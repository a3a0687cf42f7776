"""The OVQ operator as Triton kernels. Importing the package imports no Triton: `operator` and `compile` do."""
