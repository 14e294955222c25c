package auth

import "golang.org/x/crypto/bcrypt"

func init() { ownCost = bcrypt.MinCost }
