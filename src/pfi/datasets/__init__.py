"""LaMP files and the made-up people of the demo."""
