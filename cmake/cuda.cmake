# Whether to build the CUDA kernels: sets SWAV_HAS_CUDA, and enables the language if so.
#   SWAV_CUDA                 AUTO: if a working nvcc is found; ON: insist on it; OFF: never
#   CMAKE_CUDA_ARCHITECTURES  the GPUs to compile for
#   CUDACXX, CUDA_HOME        in the environment: which nvcc, where it is not on PATH
set(SWAV_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE SWAV_CUDA PROPERTY STRINGS AUTO ON OFF)
set(SWAV_HAS_CUDA OFF)
if(SWAV_CUDA STREQUAL "AUTO" OR SWAV_CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(SWAV_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
    if(SWAV_NVCC)
      set(ENV{CUDACXX} "${SWAV_NVCC}") # by CMAKE_CUDA_COMPILER it would go untried
    endif()
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;100-real;100-virtual")
    if(DEFINED ENV{CUDACXX})
      execute_process(COMMAND $ENV{CUDACXX} --list-gpu-code OUTPUT_VARIABLE gpus ERROR_QUIET)
      if(gpus AND NOT gpus MATCHES "sm_100") # CUDA before 12.8
        set(CMAKE_CUDA_ARCHITECTURES "80-real;90a-real;90-virtual")
      endif()
    endif()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(SWAV_HAS_CUDA ON)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static) # the module imports where there is no CUDA
    enable_language(CUDA)
    message(STATUS "swav_kernels: CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}")
  else()
    unset(CMAKE_CUDA_COMPILER CACHE) # the next configuration looks again
    if(NOT SWAV_CUDA STREQUAL "AUTO")
      message(FATAL_ERROR "SWAV_CUDA=${SWAV_CUDA}, but there is no nvcc that works with this C++ compiler: "
                          "put nvcc on PATH or set CUDACXX to it, or build with -DSWAV_CUDA=AUTO or OFF")
    endif()
    message(STATUS "swav_kernels: no nvcc that works here, so CPU kernels only")
  endif()
endif()
