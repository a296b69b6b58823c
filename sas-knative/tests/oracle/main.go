// Says of each manifest of a directory what a cluster with Knative would: read by the schema of Knative's CRD, as the API server
// does for kubectl, which refuses fields that the schema has not; then defaulted and validated by Knative's own code, as its
// webhook does. One line a file: its name, and "accepted" or the fields that are wrong.
//
//	go run . ../vectors/knative/services > ../vectors/knative/verdicts.txt
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"knative.dev/pkg/apis"
	"knative.dev/serving/pkg/apis/config"
	v1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"
)

type oracle struct {
	structural *structuralschema.Structural
	validator  validation.SchemaValidator
}

func newOracle() (*oracle, error) {
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "knative.dev/serving").Output()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(module)), "config/core/300-resources/service.yaml"))
	if err != nil {
		return nil, err
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.Unmarshal(text, &crd); err != nil {
		return nil, err
	}
	var internal apiextensions.CustomResourceValidation
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(crd.Spec.Versions[0].Schema, &internal, nil); err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	validator, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	return &oracle{structural, validator}, nil
}

func (o *oracle) wrong(text []byte) []string {
	document, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return []string{"(not YAML: " + err.Error() + ")"}
	}
	var object map[string]any
	if err := json.Unmarshal(document, &object); err != nil {
		return []string{"(no object: " + err.Error() + ")"}
	}
	var fields []string
	for _, err := range validation.ValidateCustomResource(nil, object, o.validator) {
		fields = append(fields, err.Field)
	}
	options := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}
	fields = append(fields, pruning.PruneWithOptions(object, o.structural, true, options)...)

	pruned, err := json.Marshal(object)
	if err != nil {
		log.Fatal(err)
	}
	var service v1.Service
	if err := json.NewDecoder(bytes.NewReader(pruned)).Decode(&service); err != nil {
		return append(fields, "(not read: "+err.Error()+")")
	}
	if service.Namespace == "" {
		service.Namespace = "default"
	}
	ctx := apis.WithinCreate(config.ToContext(context.Background(), config.FromContextOrDefaults(context.Background())))
	service.SetDefaults(ctx)
	// Warnings are told to who deploys, and hinder nobody.
	if err := service.Validate(ctx).Filter(apis.ErrorLevel); err != nil {
		for _, one := range err.WrappedErrors() {
			fields = append(fields, one.Paths...)
		}
	}
	slices.Sort(fields)
	return slices.Compact(fields)
}

func main() {
	oracle, err := newOracle()
	if err != nil {
		log.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(os.Args[1], "*.yaml"))
	if err != nil || len(files) == 0 {
		log.Fatal("no manifests in ", os.Args[1], err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			log.Fatal(err)
		}
		said := "accepted"
		if wrong := oracle.wrong(text); len(wrong) > 0 {
			said = strings.Join(wrong, " ")
		}
		fmt.Println(filepath.Base(file), said)
	}
}
