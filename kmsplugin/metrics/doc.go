// Package metrics counts what the plugin does and shows it to Prometheus, and answers the two health checks of
// a supervisor: names, labels, the counting, the HTTP server. What a number means for
// an operator is in docs/metrics.md, and a test keeps the two together.
//
// Every name begins with hsm_kms_. The registry is our own, so that no library adds to it. Labels take values
// from lists of ours, from the configuration or from the ring; none that a peer could choose, because each new
// value is memory for good. Counting is on the path of a request: it allocates nothing and takes no lock.
//
// Files: metrics (the registry), calls (HSM calls), requests (operations, probes, peers), collect (what is
// asked for at a scrape: ring, tokens, audit trail), readrings, hold, http.
//
// It depends on envelope, on audit, health and hold/holdfile for their numbers, on growmap, hint and Prometheus. All methods may be called from
// any number of goroutines.
package metrics
