package auth

import "golang.org/x/crypto/bcrypt"

func init() { cost = bcrypt.MinCost }
