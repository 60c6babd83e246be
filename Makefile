SITE = site
.PHONY: install test slow lint format typecheck demo docs bench lowest mutants ci clean
install:   ; pip install -e '.[dev]'
test:      ; pytest
slow:      ; pytest -m slow
lint:      ; ruff check . && ruff format --check .
format:    ; ruff check --fix . && ruff format .
typecheck: ; mypy
demo:      ; python tools/train.py configs/ahpa_sit-b_router-lut.py --demo
docs:      ; NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --site-dir $(SITE) && python tools/make_docs.py --check $(SITE)
bench:     ; pytest benchmarks --benchmark-enable --benchmark-only -o addopts="" -s
lowest:    ; python tools/lowest_versions.py
mutants:   ; python tools/mutants.py
ci:        ; bash .ci/run
clean:     ; rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache work_dirs site
