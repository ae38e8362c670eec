package main

import "github.com/hsm-kms/hsm-kms/test/bench/measure"

type (
	load   = measure.Load
	sample = measure.Sample
)
