# Builds for tests; tools/sanitize.py and tools/mutate.py make them. What users get sets none of these.
#   SWAV_SANITIZE          address;undefined, or thread: build under these sanitizers, with the
#                          planted faults of tests/sanitizers
#   SWAV_INSTRUCTION_SETS  build these alone (of generic, avx2, avx512, avx512bf16 and amx; avx512
#                          with avx2, the last two with both): seconds in the place of a minute
#   SWAV_OPTIMIZE          how the kernels are optimised; SWAV_SMALL follows it
set(SWAV_SANITIZE "" CACHE STRING "Sanitizers to build under: address;undefined, or thread")
set(SWAV_INSTRUCTION_SETS "" CACHE STRING "Instruction sets to build; empty: all")
set(SWAV_OPTIMIZE_DEFAULT -O3)
if(SWAV_SANITIZE)
  set(SWAV_OPTIMIZE_DEFAULT -O1)
  if("address" IN_LIST SWAV_SANITIZE) # whose checks, inlined, take minutes to compile
    set(SWAV_OPTIMIZE_DEFAULT -O0)
  endif()
  list(JOIN SWAV_SANITIZE "," SWAV_SANITIZERS)
  add_compile_options(-fsanitize=${SWAV_SANITIZERS} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${SWAV_SANITIZERS})
  add_compile_definitions(SWAV_SANITIZE)
endif()
set(SWAV_OPTIMIZE ${SWAV_OPTIMIZE_DEFAULT} CACHE STRING "Optimisation of the kernels")
set(SWAV_SMALL -Os) # where size counts and speed does not
if(NOT SWAV_OPTIMIZE STREQUAL "-O3")
  set(SWAV_SMALL ${SWAV_OPTIMIZE})
endif()
