package main

import (
	"fmt"

	provenance "github.com/in-toto/attestation/go/predicates/provenance/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// judgeProvenance refuses members that the schema does not have, and what
// in-toto's own checks refuse.
func judgeProvenance(b []byte) error {
	p := &provenance.Provenance{}
	if err := (protojson.UnmarshalOptions{}).Unmarshal(b, p); err != nil {
		return fmt.Errorf("in-toto: %w", err)
	}
	if err := p.Validate(); err != nil {
		return fmt.Errorf("in-toto: %w", err)
	}
	for i, d := range p.BuildDefinition.ResolvedDependencies {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("in-toto: dependency %d: %w", i, err)
		}
		if err := judgePURL(d.Uri); err != nil {
			return fmt.Errorf("dependency %d: %w", i, err)
		}
	}
	for i, d := range p.RunDetails.Byproducts {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("in-toto: byproduct %d: %w", i, err)
		}
	}
	fmt.Printf("SLSA v1 provenance: %d dependencies, builder %s\n", len(p.BuildDefinition.ResolvedDependencies), p.RunDetails.Builder.Id)
	return nil
}
