"""The pages. (Not called `pages`: Streamlit would list that folder as pages of its own.)"""
