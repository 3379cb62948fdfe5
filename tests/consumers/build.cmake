# cmake -DPROGRAM=... -DRUN=... -DOUT=... -P build.cmake -- COMPILER FLAG...: compiles one
# program as a user would, and runs it if RUN says so. A PROGRAM that is README.md stands for the
# first block of C++ in it.
set(command "")
foreach(n RANGE ${CMAKE_ARGC})
  if(in_command AND n LESS CMAKE_ARGC)
    list(APPEND command "${CMAKE_ARGV${n}}")
  elseif("${CMAKE_ARGV${n}}" STREQUAL "--")
    set(in_command TRUE)
  endif()
endforeach()

# It may be missing altogether, or only the standard library that the flags ask for.
file(WRITE ${OUT}_probe.cpp "#include <concepts>\nint main() {}\n")
execute_process(COMMAND ${command} ${OUT}_probe.cpp -o ${OUT}_probe
  RESULT_VARIABLE failed OUTPUT_QUIET ERROR_VARIABLE why)
if(failed)
  message("skipped: ${command}: ${failed} ${why}")
  return()
endif()

if(PROGRAM MATCHES "README.md$")
  file(READ ${PROGRAM} text)
  string(FIND "${text}" "```cpp\n" begin)
  string(SUBSTRING "${text}" ${begin} -1 text)
  string(SUBSTRING "${text}" 7 -1 text)
  string(FIND "${text}" "```" end)
  string(SUBSTRING "${text}" 0 ${end} text)
  if(begin EQUAL -1 OR NOT text MATCHES "int main")
    message(FATAL_ERROR "README.md does not begin with a complete program")
  endif()
  set(PROGRAM ${OUT}.cpp)
  file(WRITE ${PROGRAM} "${text}")
endif()
execute_process(COMMAND ${command} ${PROGRAM} -o ${OUT} COMMAND_ERROR_IS_FATAL ANY)
if(RUN)
  execute_process(COMMAND ${OUT} COMMAND_ERROR_IS_FATAL ANY)
endif()
