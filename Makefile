# Two commands matter: `make run` and `make test`. Both install what they need on Debian 12.

.DEFAULT_GOAL := help
scripts := fixtures/install

.PHONY: help
help: ## lists every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## installs, builds and runs everything; Ctrl-C stops it (LOCAL_DIR=, SIMULATE_RATE=)
	@exec $(scripts)/run.sh

.PHONY: test
test: ## format, lints and all tests, on servers that they start; ends with counts
	@exec $(scripts)/test.sh

.PHONY: install
install: ## installs and downloads what run and test need, and nothing else
	@exec $(scripts)/install.sh test

.PHONY: reset
reset: ## wipes the data of the local environment (LOCAL_DIR=), not the downloads
	@exec $(scripts)/reset.sh

benchmarks := bench-transaction bench-replication bench-latency bench-connector bench-view bench-verify
.PHONY: $(benchmarks)
bench-transaction: ## measures Kafka transactions against an idempotent producer
bench-replication: ## measures the replication client against pg_recvlogical
bench-connector: ## measures the connector against PostgreSQL's programs and Debezium (40 min)
bench-view: ## measures the aggregator against batches, triggers and a materialized view (40 min)
bench-verify: ## measures the comparison of the view with a source of a million rows (10 min)
bench-latency: ## measures commit in a source to answer of the API, and its stages
$(benchmarks): bench-%:
	@exec $(scripts)/bench.sh $*

.PHONY: soak
soak: ## runs the random workload while everything fails (SOAK_S=600 SEED= FAULTS= CLIENTS=)
	@exec $(scripts)/soak.sh

.PHONY: fuzz
fuzz: ## mutates inputs of decoder, configuration and checkpoint (SECONDS_EACH=300)
	@exec $(scripts)/fuzz.sh

.PHONY: mutants
mutants: ## switches each rule of the protocol off; its test must fail
	@exec $(scripts)/mutants.sh
