// Before the page is drawn: the theme that was chosen, if one was; else the system's counts.
{
  const chosen = localStorage.getItem("pfi-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
