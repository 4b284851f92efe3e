// Package chart tests what Berth's chart installs: that its values are checked,
// and that its roles and policies let operator and agents do their work and
// nothing else.
package chart
