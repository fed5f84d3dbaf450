.PHONY: native
# In-place development build: src/capax/_native*.so beside the package.
native:
	@cmake -S . -B build/dev -G Ninja -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/capax \
	  -DPython_EXECUTABLE=$$(command -v python) > build-dev.log 2>&1 || (cat build-dev.log; false)
	@rm -f build-dev.log
	@cmake --build build/dev
