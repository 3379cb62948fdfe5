# Eigen3::Eigen, 3.4 to 5.x: what the user's own build has by that name, or a package. Read by the
# library's own build and by the installed package. Sets omnisparse_eigen_problem where there is none.
set(omnisparse_eigen_problem "")
if(TARGET Eigen3::Eigen)
  return()
endif()
# A package answers for its own major version only.
foreach(omnisparse_eigen_version IN ITEMS 3.4 5)
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 ${omnisparse_eigen_version} QUIET NO_MODULE)
  endif()
endforeach()
if(NOT TARGET Eigen3::Eigen)
  string(CONCAT omnisparse_eigen_problem
    "omnisparse: needs Eigen 3.4 to 5.x, and none was found: install it (Debian: libeigen3-dev), name its "
    "folder in Eigen3_DIR or CMAKE_PREFIX_PATH, or add it as a subdirectory before omnisparse")
endif()
