// Package desk has the commands about who may do what: token, can-i and pull-secret. auth.Guard.Jobs answers them in the
// running server.
//
// # Words
//
//   - job: as in package admin; all of these are short.
//   - robot, secret, rule: as in package auth.
//
// # Invariants
//
// A robot's secret is told once, by the job that makes it, and written nowhere else.
//
// # What it does not do
//
// It decides nothing, and it reads no settings: the program hands them over.
package desk

import "trow/registry/auth"

// The names of the jobs.
const (
	jobCreate = auth.JobCreateRobot
	jobRevoke = auth.JobRevokeRobot
	jobList   = auth.JobListRobots
	jobCanI   = auth.JobExplain
)

// created is the outcome of creating a robot.
type created = auth.CreatedRobot
