// Package measure is what the benchmark programs share: putting a load on something and summing up what came of it, the
// processor time that others took meanwhile, tables, and the files of results. What is measured, and against what, is
// the programs' own.
package measure
