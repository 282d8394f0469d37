"""Run PTX on a CPU with NumPy, and find what a GPU would leave unseen: races, stray accesses, missing waits.

``parsing`` reads the text, ``machine`` runs it with ``registers`` typed by ``values`` and the two memories
``global_memory`` and ``shared_memory``, ``instructions`` holds what each opcode does, ``triton_driver`` lets Triton
launch all of it on CPU tensors.
"""
