"""Other INR hyper-networks beside HUVR, all behind one interface: TransINR, GINR, ANR, and MINR's masking with its rival MAE."""
