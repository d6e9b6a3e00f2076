"""Other networks, written anew from their mathematics, so that they can be timed without their packages.

Each has the parameter names of the implementation it stands for, loads its state dicts, does the
same tensor operations in its forward pass, and is tested against answers of the original.
"""
