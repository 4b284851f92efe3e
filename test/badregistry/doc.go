// Package badregistry is a registry that misbehaves on order, and images that mean harm to whoever pulls them.
package badregistry
