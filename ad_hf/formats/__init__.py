"""Other formats of histories: Minari, arrays in npz and HDF5 files, and several datasets as one."""
