"""Other hyper-networks on the footing of HUVR; ``huvr fit --config hypernets/NAME.yaml`` trains one."""
